// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/boolean.h"
#include "ns3/object-factory.h"
#include "ns3/ub-congestion.h"
#include "ns3/ub-transport.h"
#include "ns3/uinteger.h"

#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <tuple>

using namespace ns3;

namespace
{

/**
 * Make an object from text, as the attributes of UbFabric do.
 * @tparam T Its type.
 * @param [in] text A TypeId with attributes.
 * @return The object.
 */
template <class T>
Ptr<T>
Make(const std::string& text)
{
    std::istringstream stream(text);
    ObjectFactory factory;
    stream >> factory;
    return factory.Create<T>();
}

/**
 * @ingroup ub-fabric-test
 * @brief Endpoints and a wire for one transport: every packet takes the same time, unless a test
 * says otherwise; any packet may be lost, marked or late.
 */
class WireHost : public UbTransportHost
{
  public:
    static constexpr int64_t RECEIVE_PS = 300'000; //!< latency of an endpoint
    static constexpr int64_t ANSWER_PS = 50'000;   //!< latency of an endpoint
    static constexpr int64_t MEMORY_PS = 120'000;  //!< latency of an endpoint
    static constexpr int64_t WIRE_PS = 1'000'000;  //!< first byte out to first byte in
    static constexpr int64_t BYTE_PS = 10;         //!< time of a byte

    /// A packet as it was sent.
    struct Sent
    {
        int64_t timePs;        //!< when
        UbInjection injection; //!< what
    };

    /// @param [in] transport What to test.
    /// @param [in] congestion Congestion control, or nullptr.
    explicit WireHost(Ptr<UbTransport> transport, Ptr<UbCongestionControl> congestion = nullptr)
        : m_transport(transport)
    {
        transport->Attach(*this, 0, 4096, congestion);
    }

    /**
     * Add a flow of one message and hand it over.
     * @param [in] bytes Its size.
     * @param [in] operation What it does.
     * @param [in] src Its source.
     * @param [in] dst Its destination.
     * @return Its number.
     */
    uint32_t AddFlow(uint32_t bytes,
                     uint8_t operation = UB_WRITE,
                     uint32_t src = 0,
                     uint32_t dst = 1)
    {
        UbFlowRecord record{};
        record.src = src;
        record.dst = dst;
        record.messages = 1;
        record.messageBytes = bytes;
        record.operation = operation;
        record.firstBytePs = UB_NEVER;
        for (uint32_t left = bytes; left > 0;)
        {
            const uint32_t piece = std::min(left, PieceBytes(record));
            record.packetsLeft +=
                (piece + m_transport->PacketBytes() - 1) / m_transport->PacketBytes();
            left -= piece;
        }
        flows.push_back(record);
        const auto flow = static_cast<uint32_t>(flows.size() - 1);
        m_left.push_back(bytes);
        m_engines[{src, flow}] = flow; // each flow has an engine of its own
        completed.push_back(0);
        At(m_nowPs, [this, flow] { HandOver(flow); });
        return flow;
    }

    /// Run until nothing is left to do, or a transport has failed.
    void Run()
    {
        while (!hasFailed)
        {
            const int64_t eventPs = m_events.empty() ? UB_NEVER : m_events.begin()->first.first;
            const int64_t timerPs = timers.empty() ? UB_NEVER : std::get<0>(*timers.begin());
            if (eventPs == UB_NEVER && timerPs == UB_NEVER)
            {
                return;
            }
            if (eventPs <= timerPs)
            {
                m_nowPs = eventPs;
                const auto act = m_events.begin()->second;
                m_events.erase(m_events.begin());
                act();
                continue;
            }
            const auto [timePs, name, index] = *timers.begin();
            timers.erase(timers.begin());
            m_nowPs = timePs;
            m_transport->Expire(name, index, timePs);
        }
    }

    /**
     * @param [in] withPayload Count packets with payload, or those without.
     * @return Packets sent.
     */
    size_t Count(bool withPayload) const
    {
        return static_cast<size_t>(
            std::count_if(sent.begin(), sent.end(), [withPayload](const Sent& packet) {
                return (packet.injection.payloadBytes > 0) == withPayload;
            }));
    }

    // inherited from UbTransportHost
    UbFlowRecord& FlowRecord(uint32_t flow) override
    {
        return flows[flow];
    }

    int64_t Send(UbInjection& injection, uint32_t /* network */, int64_t nowPs) override
    {
        int64_t& freePs = m_egressFreePs[injection.srcEndpoint];
        injection.readyPs = std::max(nowPs, freePs);
        freePs = injection.readyPs + injection.wireBytes * BYTE_PS;
        UbDelivery delivery{};
        delivery.headPs = injection.readyPs + WIRE_PS + (delay ? delay(injection) : 0);
        delivery.tailPs = delivery.headPs + injection.wireBytes * BYTE_PS;
        delivery.flow = injection.flow;
        delivery.tag = injection.tag;
        delivery.payloadBytes = static_cast<uint16_t>(injection.payloadBytes);
        delivery.hops = 2;
        delivery.congestion = injection.congestion;
        delivery.hint = injection.hint;
        delivery.isLost = loses && loses(injection);
        if (marks && (injection.congestion & UB_CONGESTION_CAPABLE) != 0 && marks(injection))
        {
            delivery.congestion |= UB_CONGESTION_MARKED;
        }
        if (refuses)
        {
            delivery.congestion &= static_cast<uint8_t>(~UB_CONGESTION_GROW);
        }
        sent.push_back({injection.readyPs, injection});
        At(delivery.tailPs, [this, delivery] { m_transport->Account(delivery); });
        return injection.readyPs;
    }

    uint32_t WireBytes(uint32_t /* network */,
                       uint32_t headerBytes,
                       uint32_t payloadBytes) const override
    {
        return headerBytes + payloadBytes;
    }

    int64_t EgressFreePs(uint32_t endpoint) const override
    {
        const auto found = m_egressFreePs.find(endpoint);
        return found == m_egressFreePs.end() ? 0 : found->second;
    }

    uint64_t PortBytesPerS(uint32_t /* endpoint */, uint32_t /* network */) const override
    {
        return 1'000'000'000'000 / BYTE_PS;
    }

    int64_t ReceivePs(uint32_t /* endpoint */) const override
    {
        return RECEIVE_PS;
    }

    int64_t AcknowledgePs(uint32_t /* endpoint */) const override
    {
        return ANSWER_PS;
    }

    int64_t MemoryReadPs(uint32_t /* endpoint */) const override
    {
        return MEMORY_PS;
    }

    void Schedule(int64_t timePs, uint32_t endpoint, const UbReaction& reaction) override
    {
        At(timePs, [this, endpoint, reaction] { m_transport->React(endpoint, reaction, m_nowPs); });
    }

    void SchedulePump(int64_t timePs, uint32_t endpoint, uint32_t /* network */) override
    {
        At(timePs, [this, endpoint] { m_transport->Pump(endpoint, m_nowPs); });
    }

    void SetTimer(int64_t timePs, uint32_t /* network */, uint64_t name, uint32_t index) override
    {
        timers.emplace(timePs, name, index);
    }

    void CancelTimer(int64_t timePs, uint32_t /* network */, uint64_t name) override
    {
        const auto found = timers.lower_bound({timePs, name, 0});
        if (found != timers.end() && std::get<1>(*found) == name)
        {
            timers.erase(found);
        }
    }

    void Deliver(const UbDelivery& delivery) override
    {
        UbFlowRecord& flow = flows[delivery.flow];
        isTooMuch |= flow.packetsLeft == 0;
        --flow.packetsLeft;
        deliveredBytes += delivery.payloadBytes;
        flow.finishPs = std::max(flow.finishPs, delivery.tailPs);
    }

    void CountSent(uint32_t bytes) override
    {
        sentBytes += bytes;
    }

    void Complete(uint32_t flow, int64_t nowPs) override
    {
        ++completed[flow];
        flows[flow].startPs = nowPs; // of the last piece
    }

    void Resume(uint32_t /* endpoint */, uint32_t engine, int64_t nowPs) override
    {
        At(nowPs, [this, engine] { HandOver(engine); });
    }

    void Hold(uint32_t /* flow */) override
    {
        ++held;
    }

    void Release(uint32_t /* flow */) override
    {
        --held;
    }

    void Fail(uint32_t /* flow */, int64_t nowPs) override
    {
        hasFailed = true;
        failedPs = nowPs;
    }

    std::vector<UbFlowRecord> flows;                          //!< the flows
    std::vector<uint32_t> completed;                          //!< pieces done with, by flow
    std::vector<Sent> sent;                                   //!< all packets
    std::set<std::tuple<int64_t, uint64_t, uint32_t>> timers; //!< timers
    std::function<bool(const UbInjection&)> loses;            //!< which packets are lost
    std::function<bool(const UbInjection&)> marks;            //!< which packets are marked
    bool refuses{false};                                      //!< growth is refused
    std::function<int64_t(const UbInjection&)> delay;         //!< which packets are late
    uint64_t sentBytes{0};                                    //!< payload counted as sent
    uint64_t deliveredBytes{0};                               //!< payload delivered
    int64_t held{0};                                          //!< holds not released
    bool isTooMuch{false};                                    //!< something was delivered twice
    bool hasFailed{false};                                    //!< the transport gave up
    int64_t failedPs{0};                                      //!< when

  private:
    /**
     * Do something at a time; what was added first comes first.
     * @param [in] timePs The time.
     * @param [in] act What to do.
     */
    void At(int64_t timePs, std::function<void()> act)
    {
        m_events.emplace(std::make_pair(timePs, m_order++), std::move(act));
    }

    /**
     * @param [in] flow A flow.
     * @return Most bytes that an engine hands over at a time.
     */
    uint32_t PieceBytes(const UbFlowRecord& flow) const
    {
        return (flow.operation & UB_READ) != 0 ? m_transport->ReadBytes()
                                               : m_transport->PieceBytes();
    }

    /// Hand over the next pieces of a flow. @param [in] flow The flow, and its engine.
    void HandOver(uint32_t flow)
    {
        while (m_left[flow] > 0)
        {
            const uint32_t piece = std::min(m_left[flow], PieceBytes(flows[flow]));
            const int64_t donePs =
                m_transport->HandOver({flow, flows[flow].src, flow, piece}, m_nowPs);
            if (donePs == UB_NEVER)
            {
                return;
            }
            m_left[flow] -= piece;
            if (donePs > m_nowPs)
            {
                At(donePs, [this, flow] { HandOver(flow); });
                return;
            }
        }
    }

    Ptr<UbTransport> m_transport;                                           //!< what is tested
    std::map<std::pair<int64_t, uint64_t>, std::function<void()>> m_events; //!< by time and order
    std::map<uint32_t, int64_t> m_egressFreePs;                             //!< by endpoint
    std::map<std::pair<uint32_t, uint32_t>, uint32_t> m_engines;            //!< engine of a flow
    std::vector<uint32_t> m_left;                                           //!< bytes, by flow
    uint64_t m_order{0};                                                    //!< events added
    int64_t m_nowPs{0};                                                     //!< the time
};

/// Times of an endpoint in the cases that run on a fabric.
constexpr int64_t ISSUE_PS = 350'001;
constexpr int64_t RECEIVE_PS = 123'457;        //!< last byte in to seen
constexpr int64_t ANSWER_PS = 40'003;          //!< packet in to response out
constexpr int64_t MEMORY_PS = 80'009;          //!< read request in to data out
constexpr uint64_t LINK_RATE = 28'000'000'007; //!< bytes a second

/**
 * @param [in] transport Attribute UbTransport.
 * @param [in,out] chain Where to build.
 * @param [in] overlap Whether an engine prepares a message while it streams one.
 * @return A chain of one switch.
 */
Ptr<UbFabric>
BuildChain(const std::string& transport, UbTestChain& chain, bool overlap = false)
{
    UbFabricHelper helper;
    helper.SetFabricAttribute("UbTransport", StringValue(transport));
    chain.endpoint.overlapsIssue = overlap;
    chain.rateBytesPerS = LINK_RATE;
    chain.endpoint.issueCost = PicoSeconds(ISSUE_PS);
    chain.endpoint.receiveLatency = PicoSeconds(RECEIVE_PS);
    chain.endpoint.acknowledgeLatency = PicoSeconds(ANSWER_PS);
    chain.endpoint.memoryReadLatency = PicoSeconds(MEMORY_PS);
    chain.Build(helper);
    return helper.Build();
}

/**
 * @param [in] bytes Bytes on the wire.
 * @return Time on a link of the chain.
 */
int64_t
LinkPs(uint64_t bytes)
{
    return UbTestWirePs(bytes, LINK_RATE);
}

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief One write or read by a core.
 */
class UbLoadStoreLoneTestCase : public UbTestCase
{
  public:
    /// @param [in] isRead A read, not a write.
    explicit UbLoadStoreLoneTestCase(bool isRead)
        : UbTestCase(std::string("a lone ") + (isRead ? "read" : "write") +
                     " and its response take the closed form to the picosecond"),
          m_isRead(isRead)
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t engineRate = 5'000'000'003;
        constexpr uint32_t bytes = 500;
        UbTestChain chain;
        chain.endpoint.engineRate = UbTestRate(engineRate);
        const auto fabric = BuildChain("ns3::UbLoadStore", chain);
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 1'000);
        chunk.AddFlowOfTask(task, m_isRead ? task : UB_NONE, chain.destinations[0], 1, bytes);
        chunk.flows[0].operation = m_isRead ? UB_READ : UB_WRITE;
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        const int64_t ready = 1'000 + ISSUE_PS;
        const UbFlowRecord& flow = chunk.flows[0];
        int64_t issued;
        if (m_isRead)
        {
            const int64_t asked = ready + chain.PathPs() + LinkPs(28);
            const int64_t first = asked + MEMORY_PS + chain.PathPs();
            issued = first + LinkPs(bytes + 20) + RECEIVE_PS;
            NS_TEST_ASSERT_MSG_EQ(flow.firstBytePs, first, "first byte of the data");
            NS_TEST_ASSERT_MSG_EQ(flow.finishPs, issued, "the reader sees the data");
            NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].arrivedPs, issued, "its task waited for it");
        }
        else
        {
            const int64_t first = ready + UbTestWirePs(bytes, engineRate) + chain.PathPs();
            const int64_t written = first + LinkPs(bytes + 28);
            issued = written + ANSWER_PS + chain.PathPs() + LinkPs(20) + ANSWER_PS;
            NS_TEST_ASSERT_MSG_EQ(flow.firstBytePs, first, "first byte of the data");
            NS_TEST_ASSERT_MSG_EQ(flow.finishPs, written + RECEIVE_PS, "the receiver sees it");
        }
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs, issued, "the response is back");
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].finishPs, issued, "the task is over");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), 2, "a request and a response");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the chunk is complete");
    }

    bool m_isRead; //!< a read, not a write
};

/**
 * @ingroup ub-fabric-test
 * @brief A core whose window is full.
 */
class UbLoadStoreWindowTestCase : public UbTestCase
{
  public:
    /// @param [in] window Requests that may be unanswered.
    explicit UbLoadStoreWindowTestCase(uint32_t window)
        : UbTestCase("a core with a window of " + std::to_string(window) +
                     " sends so many requests a round trip"),
          m_window(window)
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint32_t rounds = 3;
        UbTestChain chain;
        const auto fabric = BuildChain(
            "ns3::UbLoadStore[RequestBytes=256|WindowRequests=" + std::to_string(m_window) + "]",
            chain);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, rounds * m_window * 256);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        // an engine without a rate hands over at once; the port spaces the requests of a window
        const int64_t serialise = LinkPs(256 + 28);
        const int64_t roundTrip = 2 * chain.PathPs() + serialise + LinkPs(20) + 2 * ANSWER_PS;
        const int64_t finish = ISSUE_PS + (rounds - 1) * roundTrip + (m_window - 1) * serialise +
                               chain.PathPs() + serialise + RECEIVE_PS;
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs, finish, "finish");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), 2 * rounds * m_window, "packets");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the chunk is complete");
    }

    uint32_t m_window; //!< requests that may be unanswered
};

/**
 * @ingroup ub-fabric-test
 * @brief A source with a window that waits for acknowledgements.
 */
class UbReliableClockTestCase : public UbTestCase
{
  public:
    UbReliableClockTestCase()
        : UbTestCase("acknowledgements clock the packets of the reliable transport")
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        const auto fabric =
            BuildChain("ns3::UbReliable[Mtu=1024|WindowBytes=2048|AcknowledgeEvery=1]", chain);
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 0);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], 1, 6 * 1024);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        const int64_t serialise = LinkPs(1024 + 56);
        const int64_t roundTrip = 2 * chain.PathPs() + serialise + LinkPs(48) + 2 * ANSWER_PS;
        const int64_t last = ISSUE_PS + 2 * roundTrip + serialise; // leaves the port
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              last + chain.PathPs() + serialise + RECEIVE_PS,
                              "finish");
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs, last + roundTrip, "acknowledged");
        NS_TEST_ASSERT_MSG_EQ(Simulator::Now().GetTimeStep(),
                              last + roundTrip,
                              "no timer keeps the run going");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), 12, "packets and acknowledgements");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the chunk is complete");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A read of several requests.
 */
class UbReadPaceTestCase : public UbTestCase
{
  public:
    UbReadPaceTestCase()
        : UbTestCase("requests of a read follow each other at the rate of the engine")
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t engineRate = 1'000'000'000; // 512 ns a request
        UbTestChain chain;
        chain.endpoint.engineRate = UbTestRate(engineRate);
        const auto fabric = BuildChain("ns3::UbLoadStore", chain);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 1200);
        chunk.flows[0].operation = UB_READ;
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        const int64_t last = ISSUE_PS + 2 * UbTestWirePs(512, engineRate); // asks for 176 bytes
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              last + chain.PathPs() + LinkPs(28) + MEMORY_PS + chain.PathPs() +
                                  LinkPs(176 + 20) + RECEIVE_PS,
                              "finish");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), 6, "three requests and their data");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetBytesDelivered(), 1200, "bytes");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Acknowledgements for several packets at a time.
 */
class UbAcknowledgeTestCase : public UbTestCase
{
  public:
    UbAcknowledgeTestCase()
        : UbTestCase("packets are acknowledged every so many, or a delay after the first of them")
    {
    }

  private:
    void DoRun() override
    {
        WireHost host(Make<UbTransport>(
            "ns3::UbReliable[Mtu=1000|AcknowledgeEvery=4|AcknowledgeDelay=700ns]"));
        host.AddFlow(9000);
        host.Run();
        std::vector<WireHost::Sent> acks;
        for (const auto& packet : host.sent)
        {
            if (packet.injection.payloadBytes == 0)
            {
                acks.push_back(packet);
            }
        }
        const auto known = [](int64_t packet) { // the receiver looks at it
            return packet * (1000 + 56) * WireHost::BYTE_PS + WireHost::WIRE_PS +
                   WireHost::ANSWER_PS;
        };
        NS_TEST_ASSERT_MSG_EQ(acks.size(), 3, "acknowledgements of nine packets");
        NS_TEST_ASSERT_MSG_EQ(acks[0].timePs, known(4), "with the fourth");
        NS_TEST_ASSERT_MSG_EQ(acks[1].timePs, known(8), "with the eighth");
        NS_TEST_ASSERT_MSG_EQ(acks[2].timePs, known(9) + 700'000, "after the delay");
        NS_TEST_ASSERT_MSG_EQ(host.timers.empty(), true, "timers");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Messages longer than a work request, and the compact transport.
 */
class UbCompactTestCase : public UbTestCase
{
  public:
    UbCompactTestCase()
        : UbTestCase("the compact transport posts work requests and waits for nothing")
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        const auto fabric = BuildChain("ns3::UbCompact[Mtu=1000|WorkRequestBytes=2500]", chain);
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 0);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], 1, 6000);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        // 2500 = 1000 + 1000 + 500, twice, and 1000; each request at the issue cost
        const int64_t posted = 3 * ISSUE_PS;
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), 7, "packets");
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs, posted, "the egress took the last packet");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              posted + chain.PathPs() + LinkPs(1000 + 29) + RECEIVE_PS,
                              "finish");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the chunk is complete");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief What is sent again when one packet is lost.
 */
class UbReliableLossTestCase : public UbTestCase
{
  public:
    UbReliableLossTestCase()
        : UbTestCase("one lost packet is repeated as the kind of retransmission says")
    {
    }

  private:
    /**
     * Lose the second of six packets once.
     * @param [in] attributes Attributes of UbReliable.
     * @return The packets.
     */
    std::vector<WireHost::Sent> Lose(const std::string& attributes)
    {
        WireHost host(
            Make<UbTransport>("ns3::UbReliable[Mtu=1000|AcknowledgeEvery=1|" + attributes + "]"));
        bool isLost = false;
        host.loses = [&isLost](const UbInjection& injection) {
            const bool loses = !isLost && injection.tag == 1 && injection.payloadBytes > 0;
            isLost |= loses;
            return loses;
        };
        host.AddFlow(6000);
        host.Run();
        NS_TEST_EXPECT_MSG_EQ(host.deliveredBytes, 6000, attributes << ": delivered");
        NS_TEST_EXPECT_MSG_EQ(host.isTooMuch, false, attributes << ": delivered twice");
        NS_TEST_EXPECT_MSG_EQ(host.completed[0], 1, attributes << ": completed");
        NS_TEST_EXPECT_MSG_EQ(host.held, 0, attributes << ": held");
        NS_TEST_EXPECT_MSG_EQ(host.timers.empty(), true, attributes << ": timers");
        std::vector<WireHost::Sent> data;
        for (const auto& packet : host.sent)
        {
            if (packet.injection.payloadBytes > 0)
            {
                data.push_back(packet);
            }
        }
        return data;
    }

    /// A packet lost when it is repeated, after one that was not, is asked for at once as well.
    void CheckSecondGap()
    {
        WireHost host(Make<UbTransport>(
            "ns3::UbReliable[Mtu=1000|AcknowledgeEvery=1|Ordered=true|Retransmission=GoBackN]"));
        std::map<uint32_t, uint32_t> seen;
        host.loses = [&seen](const UbInjection& injection) {
            return injection.payloadBytes > 0 && ((injection.tag == 1 && seen[1]++ == 0) ||
                                                  (injection.tag == 3 && seen[3]++ == 1));
        };
        host.AddFlow(6000);
        host.Run();
        NS_TEST_EXPECT_MSG_EQ(host.deliveredBytes, 6000, "delivered");
        NS_TEST_EXPECT_MSG_LT(host.flows[0].finishPs, 10'000'000, "before any timeout");
    }

    void DoRun() override
    {
        constexpr int64_t serialise = (1000 + 56) * WireHost::BYTE_PS;
        // what the receiver says of packet 2 is back, while nothing else is being sent
        constexpr int64_t known = 2 * serialise + WireHost::WIRE_PS + serialise +
                                  WireHost::ANSWER_PS + WireHost::WIRE_PS + 48 * WireHost::BYTE_PS +
                                  WireHost::ANSWER_PS;

        auto data = Lose("Ordered=true|Retransmission=Selective");
        NS_TEST_ASSERT_MSG_EQ(data.size(), 7, "selective repeats one packet");
        NS_TEST_ASSERT_MSG_EQ(data[6].injection.tag, 1, "which is the lost one");
        NS_TEST_ASSERT_MSG_EQ(data[6].injection.ordered, true, "on the same path");
        NS_TEST_ASSERT_MSG_EQ(data[6].timePs, known, "as soon as its successor is acknowledged");

        data = Lose("Ordered=true|Retransmission=GoBackN");
        NS_TEST_ASSERT_MSG_EQ(data.size(), 11, "go-back-N repeats all after the gap");
        NS_TEST_ASSERT_MSG_EQ(data[6].injection.tag, 1, "from the lost one on");
        NS_TEST_ASSERT_MSG_EQ(data[6].timePs, known, "as soon as it is asked to");
        NS_TEST_ASSERT_MSG_EQ(data[10].injection.tag, 5, "to the last one");

        CheckSecondGap();

        // sprayed: only the timer tells; it was set anew when packet 0 was acknowledged
        constexpr int64_t acknowledged = known - 2 * serialise;
        data = Lose("Retransmission=Selective|Timeout=30us");
        NS_TEST_ASSERT_MSG_EQ(data.size(), 7, "selective repeats one packet");
        NS_TEST_ASSERT_MSG_EQ(data[6].injection.tag, 1, "which is the lost one");
        NS_TEST_ASSERT_MSG_EQ(data[6].timePs, acknowledged + 30'000'000, "after the timeout");

        data = Lose("Retransmission=GoBackN|Timeout=30us");
        NS_TEST_ASSERT_MSG_EQ(data.size(), 11, "go-back-N repeats all that is not acknowledged");
        NS_TEST_ASSERT_MSG_EQ(data[6].timePs, acknowledged + 30'000'000, "after the timeout");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Packets that overtake each other.
 */
class UbReliableReorderTestCase : public UbTestCase
{
  public:
    UbReliableReorderTestCase()
        : UbTestCase("the receiver takes packets out of order within its window, and drops others")
    {
    }

  private:
    /**
     * Let the first of eight packets be late.
     * @param [in] reorderWindow Attribute ReorderWindow.
     * @return Packets with payload that were sent.
     */
    size_t Delay(uint32_t reorderWindow)
    {
        WireHost host(Make<UbTransport>(
            "ns3::UbReliable[Mtu=1000|AcknowledgeEvery=1|Timeout=30us|ReorderWindow=" +
            std::to_string(reorderWindow) + "]"));
        host.delay = [](const UbInjection& injection) {
            return injection.payloadBytes > 0 && injection.tag == 0 ? 500'000 : 0;
        };
        host.AddFlow(8000);
        host.Run();
        NS_TEST_EXPECT_MSG_EQ(host.deliveredBytes, 8000, "delivered");
        NS_TEST_EXPECT_MSG_EQ(host.isTooMuch, false, "delivered twice");
        NS_TEST_EXPECT_MSG_EQ(host.held, 0, "held");
        return host.Count(true);
    }

    void DoRun() override
    {
        NS_TEST_ASSERT_MSG_EQ(Delay(8), 8, "all fit the window");
        NS_TEST_ASSERT_MSG_EQ(Delay(5), 11, "the last three are beyond it and are repeated");
        NS_TEST_ASSERT_MSG_EQ(Delay(0), 15, "in order only: all but the late one are repeated");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A destination that never answers.
 */
class UbBackOffTestCase : public UbTestCase
{
  public:
    UbBackOffTestCase()
        : UbTestCase("timeouts back off and end at the limit")
    {
    }

  private:
    void DoRun() override
    {
        WireHost host(Make<UbTransport>("ns3::UbReliable[Timeout=20us|BackOff=8|RetryLimit=3]"));
        host.loses = [](const UbInjection&) { return true; };
        host.AddFlow(100);
        host.Run();
        constexpr int64_t timeout = 20'000'000;
        const int64_t expected[] = {0, timeout, 9 * timeout, 73 * timeout};
        NS_TEST_ASSERT_MSG_EQ(host.sent.size(), 4, "sent once and three times again");
        for (size_t i = 0; i < 4; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(host.sent[i].timePs, expected[i], "try " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(host.hasFailed, true, "it gives up");
        NS_TEST_ASSERT_MSG_EQ(host.failedPs, 585 * timeout, "after the last timeout");

        // those without timers of their own: a constant time after each loss
        for (const std::string name : {"ns3::UbPosted", "ns3::UbLoadStore", "ns3::UbCompact"})
        {
            WireHost other(Make<UbTransport>(name + "[Timeout=20us|RetryLimit=2]"));
            other.loses = [](const UbInjection&) { return true; };
            other.AddFlow(100);
            other.Run();
            NS_TEST_ASSERT_MSG_EQ(other.sent.size(), 3, name << ": sent once and twice again");
            const int64_t wire =
                WireHost::WIRE_PS + other.sent[0].injection.wireBytes * WireHost::BYTE_PS;
            NS_TEST_ASSERT_MSG_EQ(other.sent[2].timePs, 2 * (wire + timeout), name << ": when");
            NS_TEST_ASSERT_MSG_EQ(other.failedPs, 3 * (wire + timeout), name << ": gives up");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A write whose response is lost.
 */
class UbLostResponseTestCase : public UbTestCase
{
  public:
    UbLostResponseTestCase()
        : UbTestCase("a write whose response is lost is repeated and not counted twice")
    {
    }

  private:
    void DoRun() override
    {
        for (const uint8_t operation : {UB_WRITE, UB_READ})
        {
            WireHost host(Make<UbTransport>("ns3::UbLoadStore[Timeout=20us]"));
            uint32_t nLost = 0;
            host.loses = [&nLost](const UbInjection& injection) {
                return injection.srcEndpoint == 1 && nLost++ < 2;
            };
            host.AddFlow(1000, operation);
            host.Run();
            NS_TEST_ASSERT_MSG_EQ(host.sent.size(), 8, "two requests, both repeated, all answered");
            NS_TEST_ASSERT_MSG_EQ(host.deliveredBytes, 1000, "delivered");
            NS_TEST_ASSERT_MSG_EQ(host.sentBytes, 1000, "counted as sent");
            NS_TEST_ASSERT_MSG_EQ(host.isTooMuch, false, "delivered twice");
            NS_TEST_ASSERT_MSG_EQ(host.completed[0], 2, "requests answered");
            NS_TEST_ASSERT_MSG_EQ(host.held, 0, "held");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Reads of the posted transport, and what is lost of them.
 */
class UbPostedReadTestCase : public UbTestCase
{
  public:
    UbPostedReadTestCase()
        : UbTestCase("a posted read is answered packet by packet, and asks again for what is lost")
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t request = WireHost::WIRE_PS + 28 * WireHost::BYTE_PS;
        constexpr int64_t timeout = 20'000'000;
        const auto data = [](uint32_t bytes) { return (28 + bytes) * WireHost::BYTE_PS; };
        WireHost host(Make<UbTransport>(TRANSPORT));
        host.AddFlow(10'000, UB_READ);
        host.Run();
        // two requests one behind the other, the first one for two packets
        NS_TEST_ASSERT_MSG_EQ(host.Count(false), 2, "requests");
        NS_TEST_ASSERT_MSG_EQ(host.Count(true), 3, "packets of data");
        NS_TEST_ASSERT_MSG_EQ(host.sent[2].timePs, request + WireHost::MEMORY_PS, "first data");
        NS_TEST_ASSERT_MSG_EQ(host.sent[2].injection.srcEndpoint, 1, "come from the destination");
        NS_TEST_ASSERT_MSG_EQ(host.sent[2].injection.congestion, 0, "and are no write");
        NS_TEST_ASSERT_MSG_EQ(host.flows[0].finishPs,
                              request + WireHost::MEMORY_PS + 2 * data(4096) + WireHost::WIRE_PS +
                                  data(1808),
                              "last data");
        Check(host);

        // the first request and the second packet of its data are lost, each once
        WireHost lossy(Make<UbTransport>(TRANSPORT));
        uint32_t nSent = 0;
        lossy.loses = [&nSent](const UbInjection&) { return ++nSent == 1 || nSent == 4; };
        lossy.AddFlow(8192, UB_READ);
        lossy.Run();
        NS_TEST_ASSERT_MSG_EQ(lossy.Count(false), 3, "requests");
        NS_TEST_ASSERT_MSG_EQ(lossy.sent[1].timePs, request + timeout, "the first one, again");
        NS_TEST_ASSERT_MSG_EQ(lossy.Count(true), 3, "packets of data");
        NS_TEST_ASSERT_MSG_EQ(lossy.deliveredBytes, 8192, "delivered");
        NS_TEST_ASSERT_MSG_EQ(lossy.isTooMuch, false, "delivered twice");
        NS_TEST_ASSERT_MSG_EQ(lossy.sentBytes, 8192, "counted as sent");
    }

    /// All of a read without loss was delivered once. @param [in] host The endpoints.
    void Check(const WireHost& host)
    {
        NS_TEST_ASSERT_MSG_EQ(host.deliveredBytes, 10'000, "delivered");
        NS_TEST_ASSERT_MSG_EQ(host.sentBytes, 10'000, "counted as sent");
        NS_TEST_ASSERT_MSG_EQ(host.flows[0].packetsLeft, 0, "packets left");
        NS_TEST_ASSERT_MSG_EQ(host.held, 0, "held");
    }

    static constexpr const char* TRANSPORT =
        "ns3::UbPosted[HeaderBytes=28|WorkRequestBytes=8192|Timeout=20us]"; //!< what is tested
};

/**
 * @ingroup ub-fabric-test
 * @brief Random losses and delays under every transport.
 */
class UbExactlyOnceTestCase : public UbTestCase
{
  public:
    UbExactlyOnceTestCase()
        : UbTestCase("all bytes are delivered exactly once in 600 random cases of loss")
    {
    }

  private:
    void DoRun() override
    {
        const std::string kinds[] = {
            "ns3::UbPosted[RetryLimit=31|Timeout=20us|WorkRequestBytes=9000]",
            "ns3::UbLoadStore[RetryLimit=31|Timeout=20us|WindowRequests=3]",
            "ns3::UbCompact[RetryLimit=31|Timeout=20us|Mtu=1000|WorkRequestBytes=2500]",
            "ns3::UbReliable[RetryLimit=31|Timeout=5us|BackOff=1|Mtu=1000|WorkRequestBytes=2500|"
            "WindowBytes=9000|ReorderWindow=8|AcknowledgeEvery=3",
        };
        for (uint32_t number = 0; number < 600; ++number)
        {
            uint64_t state = UbMix(number);
            const auto random = [&state](uint32_t n) {
                state = UbMix(state);
                return UbReduce(state, n);
            };
            std::string kind = kinds[std::min(3U, random(8))];
            const bool isReliable = kind.back() != ']';
            bool isOrdered = false;
            if (isReliable)
            {
                isOrdered = random(2) == 1;
                kind += std::string("|Ordered=") + (isOrdered ? "true" : "false") +
                        "|Retransmission=" + (random(2) == 1 ? "Selective" : "GoBackN") + "]";
            }
            WireHost host(Make<UbTransport>(kind));
            const uint32_t percent = random(25);
            host.loses = [&](const UbInjection&) { return random(100) < percent; };
            if (!isOrdered)
            {
                host.delay = [&](const UbInjection&) { return int64_t{random(3'000'000)}; };
            }
            uint64_t bytes = 0;
            const uint32_t nFlows = 1 + random(4);
            for (uint32_t i = 0; i < nFlows; ++i)
            {
                const uint32_t size = 1 + random(30'000);
                const bool canRead = kind.find("WorkRequestBytes=2500") == std::string::npos;
                const uint32_t src = random(2);
                host.AddFlow(size, canRead && random(2) == 1 ? UB_READ : UB_WRITE, src, 1 - src);
                bytes += size;
            }
            host.Run();
            NS_TEST_ASSERT_MSG_EQ(host.hasFailed, false, number << " " << kind << ": failed");
            NS_TEST_ASSERT_MSG_EQ(host.deliveredBytes, bytes, number << " " << kind << ": bytes");
            NS_TEST_ASSERT_MSG_EQ(host.sentBytes, bytes, number << " " << kind << ": sent");
            NS_TEST_ASSERT_MSG_EQ(host.isTooMuch, false, number << " " << kind << ": twice");
            NS_TEST_ASSERT_MSG_EQ(host.held, 0, number << " " << kind << ": held");
            NS_TEST_ASSERT_MSG_EQ(host.timers.size(), 0, number << " " << kind << ": timers");
            for (uint32_t i = 0; i < nFlows; ++i)
            {
                NS_TEST_ASSERT_MSG_EQ(host.flows[i].packetsLeft, 0, number << ": packets left");
            }
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief The same times however the run is cut, and whatever the order of the planes.
 */
class UbTransportOrderTestCase : public TestCase
{
  public:
    UbTransportOrderTestCase()
        : TestCase("answers come at the same times in windows and step by step")
    {
    }

  private:
    /**
     * Send random traffic over three planes.
     * @param [in] implementation The SimulatorImpl.
     * @param [in] transport Attribute UbTransport.
     * @param [in] congestion Attribute UbCongestion.
     * @param [in] answer Acknowledge latency.
     * @param [in] memory Memory read latency.
     * @return Finish of each flow.
     */
    std::vector<int64_t> RunTraffic(const std::string& implementation,
                                    const std::string& transport,
                                    const std::string& congestion,
                                    Time answer,
                                    Time memory)
    {
        UbStartSimulation(implementation);
        constexpr uint32_t n = 6;
        UbFabricHelper helper;
        helper.SetFabricAttribute("UbTransport", StringValue(transport));
        helper.SetFabricAttribute("UbCongestion", StringValue(congestion));
        std::vector<uint32_t> ends;
        UbEndpointParameters endpoint;
        endpoint.issueEngines = 3;
        // round numbers, so that many things happen at one instant
        endpoint.issueCost = NanoSeconds(100);
        endpoint.receiveLatency = MicroSeconds(1);
        endpoint.acknowledgeLatency = answer;
        endpoint.memoryReadLatency = memory;
        endpoint.egressRate = DataRate("320Gbps");
        for (uint32_t i = 0; i < n; ++i)
        {
            ends.push_back(helper.AddEndpoint(endpoint));
        }
        for (uint32_t plane = 0; plane < 3; ++plane)
        {
            const uint32_t hub = helper.AddSwitch(NanoSeconds(100), 20'000);
            for (const uint32_t end : ends)
            {
                helper.Connect(end, hub, plane, DataRate("80Gbps"), NanoSeconds(100));
            }
        }
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        const bool canRead = transport.find("LoadStore") != std::string::npos ||
                             transport.find("Posted") != std::string::npos;
        for (uint32_t i = 0; i < 60; ++i)
        {
            const uint64_t hash = UbMix(i);
            const uint32_t src = UbReduce(hash, n);
            const uint32_t dst = (src + 1 + UbReduce(UbMix(hash), n - 1)) % n;
            chunk.AddFlow(ends[src], ends[dst], 3, 1000 * (1 + i % 13), 200'000 * (i / 12));
            chunk.flows.back().operation = canRead && i % 3 == 0 ? UB_READ : UB_WRITE;
        }
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", transport << ": left over");
        NS_TEST_EXPECT_MSG_EQ(fabric->GetError(), "", transport << ": error");
        NS_TEST_EXPECT_MSG_EQ(fabric->TakeCompleteChunk(), 0, transport << ": chunk");
        std::vector<int64_t> finish;
        for (const auto& flow : chunk.flows)
        {
            finish.push_back(flow.finishPs);
        }
        finish.push_back(Simulator::Now().GetTimeStep());
        UbEndSimulation();
        return finish;
    }

    void DoRun() override
    {
        const std::pair<std::string, std::string> kinds[] = {
            {"ns3::UbPosted[WorkRequestBytes=2500]", ""},
            {"ns3::UbLoadStore[WindowRequests=4]", ""},
            {"ns3::UbReliable[Mtu=1000|AcknowledgeEvery=2]", ""},
            {"ns3::UbReliable[Mtu=1000|Timeout=3us|BackOff=1|RetryLimit=31]", ""},
            {"ns3::UbReliable[Mtu=1000]", "ns3::UbCaqm"},
            {"ns3::UbCompact[Mtu=1000]", "ns3::UbDcqcn"},
        };
        // whichever is short limits the windows
        const std::pair<Time, Time> latencies[] = {{NanoSeconds(10), MicroSeconds(1)},
                                                   {MicroSeconds(1), NanoSeconds(10)},
                                                   {NanoSeconds(100), NanoSeconds(100)}};
        for (const auto& [transport, congestion] : kinds)
        {
            for (const auto& [answer, memory] : latencies)
            {
                const auto windows =
                    RunTraffic("ns3::UbSimulatorImpl", transport, congestion, answer, memory);
                const auto steps =
                    RunTraffic("ns3::DefaultSimulatorImpl", transport, congestion, answer, memory);
                for (size_t i = 0; i < windows.size(); ++i)
                {
                    NS_TEST_ASSERT_MSG_EQ(windows[i], steps[i], transport << ": flow " << i);
                }
            }
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief An engine that prepares a message while it streams another.
 */
class UbOverlapTestCase : public UbTestCase
{
  public:
    /**
     * @param [in] overlap Whether an engine prepares a message while it streams one.
     * @param [in] costPs Cost of a message.
     */
    UbOverlapTestCase(bool overlap, int64_t costPs)
        : UbTestCase(std::string(overlap ? "overlapping" : "sequential") + " issue at a cost of " +
                     std::to_string(costPs) + " ps takes the closed form"),
          m_overlap(overlap),
          m_costPs(costPs)
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t engineRate = 10'000'000'000;
        constexpr uint32_t n = 7;
        UbTestChain chain;
        UbFabricHelper helper;
        chain.endpoint.overlapsIssue = m_overlap;
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        chain.endpoint.issueCost = PicoSeconds(m_costPs);
        chain.endpoint.engineRate = UbTestRate(engineRate);
        chain.endpoint.receiveLatency = PicoSeconds(RECEIVE_PS);
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], n, 2000);
        // a message that comes while the engine streams the first one is prepared meanwhile
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 2000, 100'000'000);
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 2000, 100'000'000 + m_costPs + 9);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();

        constexpr int64_t stream = 200'000;
        const int64_t wire = chain.PathPs() + UbTestWirePs(2064, chain.rateBytesPerS) + RECEIVE_PS;
        int64_t last = n * (m_costPs + stream);
        int64_t second = 2 * (m_costPs + stream);
        if (m_overlap)
        {
            last = m_costPs > stream ? n * m_costPs + stream : m_costPs + n * stream;
            second = m_costPs + std::max(stream, m_costPs + 9) + stream;
        }
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs, last + wire, "finish");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[2].finishPs,
                              100'000'000 + second + wire,
                              "a message that came later");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    bool m_overlap;   //!< an engine prepares while it streams
    int64_t m_costPs; //!< cost of a message
};

/**
 * @ingroup ub-fabric-test
 * @brief An engine whose packet waits for the egress.
 */
class UbEngineBusyTestCase : public UbTestCase
{
  public:
    UbEngineBusyTestCase()
        : UbTestCase("an engine is busy until the egress has taken its last packet")
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t stream = 100'000; // a packet at 10 GB/s
        constexpr int64_t egress = 532'000; // a packet with its header at 2 GB/s
        constexpr int64_t cost = 900'000;   // more than the egress has left to do
        UbTestChain chain;
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(1000));
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        chain.endpoint.issueCost = PicoSeconds(cost);
        chain.endpoint.engineRate = UbTestRate(10'000'000'000);
        chain.endpoint.egressRate = UbTestRate(2'000'000'000);
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        // its second packet is ready at once after the first and waits for the egress
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 2000);
        const int64_t free = cost + stream + egress;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 1000, cost + 2 * stream + 1);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].firstBytePs,
                              free + cost + stream + chain.PathPs(),
                              "the next message begins when the engine is free");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Flows that SDMA engines issue.
 */
class UbSdmaTestCase : public UbTestCase
{
  public:
    UbSdmaTestCase()
        : UbTestCase("SDMA engines have a start-up cost and a rate of their own")
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t start = 2'000'000;
        UbTestChain chain;
        UbFabricHelper helper;
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        chain.endpoint.issueCost = PicoSeconds(ISSUE_PS);
        chain.endpoint.engineRate = UbTestRate(10'000'000'000);
        chain.endpoint.receiveLatency = PicoSeconds(RECEIVE_PS);
        chain.endpoint.sdmaEngines = 1;
        chain.endpoint.sdmaStart = PicoSeconds(start);
        chain.endpoint.sdmaRate = UbTestRate(20'000'000'000);
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 0);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], 1, 2000);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], 2, 2000);
        chunk.flows[1].operation = UB_WRITE | UB_BY_SDMA;
        std::vector<UbFlowAccount> accounts(2);
        UbChunkArrays arrays = chunk.Arrays();
        arrays.accounts = accounts.data();
        fabric->AddChunk(arrays);
        Simulator::Run();
        const int64_t wire = chain.PathPs() + UbTestWirePs(2064, chain.rateBytesPerS) + RECEIVE_PS;
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              ISSUE_PS + 200'000 + wire,
                              "a core, not delayed by SDMA");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].finishPs,
                              2 * (start + 100'000) + wire,
                              "two transfers, one after the other");
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs,
                              2 * (start + 100'000),
                              "the task waits for both kinds of engines");
        NS_TEST_ASSERT_MSG_EQ(accounts[0].issuePs, ISSUE_PS + 200'000, "issue time of one packet");
        NS_TEST_ASSERT_MSG_EQ(accounts[1].issuePs, 3 * (start + 100'000), "summed over packets");
        CheckReads();
        CheckMemories();
        CheckLaterOfBoth();
    }

    /// What becomes of messages of one SDMA engine over a chain; nothing is left over.
    UbTestChunk Transfer(UbTestChain& chain,
                         const std::string& transport,
                         uint32_t messages,
                         uint32_t bytes,
                         uint8_t operation)
    {
        UbStartSimulation();
        chain.endpoint.sdmaEngines = 1;
        const auto fabric = BuildChain(transport, chain, true);
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 0);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], messages, bytes);
        chunk.flows[0].operation = operation | UB_BY_SDMA;
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        return chunk;
    }

    /// A read of several requests is paced by the engine, and so is the next one.
    void CheckReads()
    {
        constexpr int64_t start = 2'000'000;
        UbTestChain chain;
        chain.endpoint.sdmaStart = PicoSeconds(start);
        chain.endpoint.sdmaRate = UbTestRate(1'000'000'000);
        const UbTestChunk chunk = Transfer(chain,
                                           "ns3::UbPosted[HeaderBytes=64|WorkRequestBytes=4096]",
                                           2,
                                           6000,
                                           UB_READ);
        // engines of other endpoints overlap, those of SDMA do not: 6 us of data, then the start
        const int64_t last = start + 6'000'000 + start + 4'096'000;
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs, last, "the last request is out");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              last + chain.PathPs() + LinkPs(64) + MEMORY_PS + chain.PathPs() +
                                  LinkPs(1904 + 64) + RECEIVE_PS,
                              "the last data are seen");
    }

    /// An engine writes and reads at the rate of the memory at the other end, if that is lower.
    void CheckMemories()
    {
        constexpr uint64_t GB = 1'000'000'000;
        // rate of the engine, of writes, of reads, operation, time of a packet of 1,000 B
        const std::vector<std::tuple<uint64_t, uint64_t, uint64_t, uint8_t, int64_t>> cases = {
            {2 * GB, GB, 0, UB_WRITE, 1'000'000},
            {2 * GB, 0, GB, UB_WRITE, 500'000},
            {2 * GB, 3 * GB, 0, UB_WRITE, 500'000},
            {2 * GB, 0, GB, UB_READ, 1'000'000},
            {2 * GB, GB, 0, UB_READ, 500'000},
            {0, GB, 0, UB_WRITE, 1'000'000},
        };
        for (const auto& [rate, writeRate, readRate, operation, packetPs] : cases)
        {
            UbTestChain chain;
            chain.endpoint.sdmaRate = UbTestRate(rate);
            chain.endpoint.sdmaWriteRate = UbTestRate(writeRate);
            chain.endpoint.sdmaReadRate = UbTestRate(readRate);
            const UbTestChunk chunk =
                Transfer(chain,
                         "ns3::UbPosted[HeaderBytes=64|WorkRequestBytes=1000]",
                         1,
                         3000,
                         operation);
            // the last request for data is out when the packets before it have been taken in
            NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs,
                                  (operation == UB_READ ? 2 : 3) * packetPs,
                                  "writes at " << writeRate << ", reads at " << readRate);
        }
    }

    /// The egress holds a core's packet back until after the transfer by SDMA is out.
    void CheckLaterOfBoth()
    {
        UbStartSimulation();
        UbTestChain chain;
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(1000));
        helper.SetFabricAttribute("UbTransport", UbTestPosted(0));
        chain.endpoint.egressRate = UbTestRate(1'000'000'000);
        chain.endpoint.sdmaEngines = 1;
        chain.endpoint.sdmaStart = NanoSeconds(500);
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        const uint32_t task = chunk.AddTask(chain.sources[0], 0, 0);
        chunk.AddFlowOfTask(task, UB_NONE, chain.destinations[0], 1, 2000);
        chunk.AddFlowOfTask(task, UB_NONE, chain.sources[0], 1, 1000);
        chunk.flows[1].operation = UB_WRITE | UB_BY_SDMA;
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(chunk.tasks[0].issuedPs, 1'000'000, "the later of both counts");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Packets cut into flits.
 */
class UbFramingTestCase : public UbTestCase
{
  public:
    UbFramingTestCase()
        : UbTestCase("packets of the UB network take whole flits, those of others do not")
    {
    }

  private:
    void DoRun() override
    {
        for (const uint32_t network : {0U, 1U})
        {
            UbStartSimulation();
            UbFabricHelper helper;
            helper.SetFabricAttribute("FlitBytes", UintegerValue(20));
            helper.SetFabricAttribute("UbTransport", UbTestPosted(28));
            helper.SetFabricAttribute("RdmaTransport", UbTestPosted(28));
            UbTestChain chain;
            chain.Build(helper);
            helper.SetNetwork(0, network);
            const auto fabric = helper.Build();
            UbTestChunk chunk;
            chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 512, 0, 0, network);
            chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 4096, 0, 0, network);
            fabric->AddChunk(chunk.Arrays());
            Simulator::Run();
            std::vector<UbLinkStats> stats;
            fabric->ReadLinkStats(stats);
            // 28 and 209 flits of 20 bytes
            NS_TEST_ASSERT_MSG_EQ(stats[0].bytes,
                                  (network == 0 ? 560U + 4180U : 512U + 4096U + 2 * 28U),
                                  "bytes on the wire");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A source without a way to its destination.
 */
class UbNoWayTestCase : public UbTestCase
{
  public:
    UbNoWayTestCase()
        : UbTestCase("a source without a way tries again, gives up, and the run says so")
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        UbFabricHelper helper;
        helper.SetFabricAttribute("RdmaTransport",
                                  StringValue("ns3::UbPosted[Timeout=5us|RetryLimit=3]"));
        chain.endpoint.issueCost = NanoSeconds(100);
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 2, 100, 0, 0, 1);
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 100, 400'000'000, 0, 0);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(fabric->GetError(),
                              "network 1: no way from node " + std::to_string(chain.sources[0]) +
                                  " to node " + std::to_string(chain.destinations[0]) +
                                  " at 100000 ps",
                              "error");
        NS_TEST_ASSERT_MSG_EQ(Simulator::Now().GetTimeStep(),
                              100'000 + 4 * 5'000'000,
                              "it stopped when the last of three tries had been for nothing");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Each congestion control alone.
 */
class UbCongestionTestCase : public UbTestCase
{
  public:
    UbCongestionTestCase()
        : UbTestCase("congestion controls react to marks, grants and notices by their formulas")
    {
    }

  private:
    static constexpr uint32_t PACKET = 4096;          //!< payload of a packet
    static constexpr uint64_t LINE = 100'000'000'000; //!< rate of the ports

    void DoRun() override
    {
        Ldcp();
        Caqm();
        Dcqcn();
    }

    /// A window that each packet changes.
    void Ldcp()
    {
        const auto ldcp = Make<UbCongestionControl>("ns3::UbLdcp[InitialPackets=4]");
        UbCongestionState state;
        ldcp->Begin(state, PACKET, LINE, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->NeedsAcknowledgements(), true, "LDCP needs them");
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), 4 * PACKET, "at the start");
        ldcp->OnAcknowledgement(state, {1, 0, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), PACKET * 4 + PACKET / 4, "plus 1/4");
        ldcp->OnAcknowledgement(state, {1, 1, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), PACKET * 3 + 3 * PACKET / 4, "minus 1/2");
        ldcp->OnAcknowledgement(state, {6, 6, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), 3 * PACKET / 4, "six times minus 1/2");
        uint8_t bits = 0;
        uint8_t hint = 0;
        NS_TEST_ASSERT_MSG_EQ(ldcp->OnSend(state, PACKET, 0, bits, hint),
                              2'666'666,
                              "below one packet, a packet every round trip over the window");
        ldcp->OnAcknowledgement(state, {1, 1, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), 3 * PACKET / 8, "times 1/2");
        ldcp->OnAcknowledgement(state, {1, 1, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), PACKET / 4, "1/4 at least");
        ldcp->OnAcknowledgement(state, {1, 0, 0, false, 2'000'000}, 0);
        NS_TEST_ASSERT_MSG_EQ(ldcp->WindowBytes(state), PACKET / 2, "plus 1/4");
    }

    /// A window whose growth the network grants.
    void Caqm()
    {
        const auto caqm = Make<UbCongestionControl>("ns3::UbCaqm");
        UbCongestionState state;
        caqm->Begin(state, PACKET, LINE, 0);
        NS_TEST_ASSERT_MSG_EQ(caqm->WindowBytes(state), 10 * PACKET, "at the start");
        uint8_t bits = UB_CONGESTION_CAPABLE;
        uint8_t hint = 0;
        caqm->OnSend(state, PACKET, 0, bits, hint);
        NS_TEST_ASSERT_MSG_EQ(uint32_t{bits},
                              uint32_t{UB_CONGESTION_CAPABLE + UB_CONGESTION_GROW},
                              "asks to grow");
        NS_TEST_ASSERT_MSG_EQ(uint32_t{hint}, (PACKET / 32), "by a packet");
        constexpr int64_t roundTrip = 3'000'000;
        caqm->OnAcknowledgement(state, {2, 0, 256, true, roundTrip}, roundTrip);
        NS_TEST_ASSERT_MSG_EQ(caqm->WindowBytes(state), 12 * PACKET, "two grants");
        caqm->OnAcknowledgement(state, {4, 3, 128, true, roundTrip}, roundTrip);
        NS_TEST_ASSERT_MSG_EQ(caqm->WindowBytes(state),
                              11 * PACKET + PACKET / 2,
                              "a grant and three marks");
        // half a packet a round trip: 0.5 * 4096 / 11.5 / 32 units a packet
        uint32_t asked = 0;
        for (uint32_t i = 0; i < 23; ++i)
        {
            caqm->OnSend(state, PACKET, 2 * roundTrip, bits, hint);
            asked += hint;
        }
        NS_TEST_ASSERT_MSG_EQ_TOL(asked, 128U, 1U, "half a packet a round trip, in two of them");
        caqm->OnSend(state, PACKET, 12 * roundTrip, bits, hint);
        NS_TEST_ASSERT_MSG_EQ(uint32_t{hint},
                              (PACKET / 32),
                              "whole packets after ten quiet round trips");
        caqm->OnAcknowledgement(state, {1, 0, 0, false, roundTrip}, 13 * roundTrip);
        NS_TEST_ASSERT_MSG_EQ(caqm->WindowBytes(state),
                              11 * PACKET + PACKET / 2,
                              "a refusal leaves the window");
        caqm->OnSend(state, PACKET, 14 * roundTrip, bits, hint);
        NS_TEST_ASSERT_MSG_LT(uint32_t{hint}, 10, "and ends the fast growth");
        caqm->OnAcknowledgement(state, {40, 40, 0, false, roundTrip}, 15 * roundTrip);
        NS_TEST_ASSERT_MSG_EQ(caqm->WindowBytes(state), PACKET / 2, "half a packet at least");
    }

    /// A rate that notices lower.
    void Dcqcn()
    {
        const auto dcqcn = Make<UbCongestionControl>("ns3::UbDcqcn[RateBytes=1000000]");
        UbCongestionState state;
        dcqcn->Begin(state, PACKET, LINE, 0);
        NS_TEST_ASSERT_MSG_EQ(dcqcn->NeedsAcknowledgements(), false, "DCQCN does not");
        uint8_t bits = 0;
        uint8_t hint = 0;
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 0, bits, hint), 0, "at line rate");
        dcqcn->OnNotice(state, 0);
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 0, bits, hint), 20'000, "half the rate");
        dcqcn->OnNotice(state, 1000);
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 1000, bits, hint),
                              40'000,
                              "a quarter; alpha is 1 still");
        constexpr int64_t period = 55'000'000;
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 1000 + period - 1, bits, hint),
                              40'000,
                              "no step yet");
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 1000 + period, bits, hint),
                              26'667,
                              "half-way back to half the rate");
        NS_TEST_ASSERT_MSG_EQ_TOL(state.alpha, 255.0 / 256, 1e-12, "alpha decays");
        dcqcn->OnSend(state, 997'000, 1000 + period, bits, hint);
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 1000 + period, bits, hint),
                              22'857,
                              "half-way again by the byte counter");
        dcqcn->OnSend(state, 1000, 1000 + 6 * period, bits, hint);
        NS_TEST_ASSERT_MSG_EQ_TOL(state.target, 0.501 * LINE, 1.0, "the target grows");
        dcqcn->OnSend(state, 1000, 1000 + 2000 * period, bits, hint);
        NS_TEST_ASSERT_MSG_EQ(dcqcn->OnSend(state, 1000, 1000 + 2000 * period, bits, hint),
                              0,
                              "line rate again");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Marks travel from the packets to the source.
 */
class UbCongestionLoopTestCase : public UbTestCase
{
  public:
    UbCongestionLoopTestCase()
        : UbTestCase("marks and grants come back to the source and hold it back")
    {
    }

  private:
    /**
     * Send a message of 200 packets.
     * @param [in] transport The transport.
     * @param [in] congestion The congestion control, or nothing.
     * @param [in] isMarked Whether packets are marked.
     * @return The end and the packets with and without payload.
     */
    std::tuple<int64_t, size_t, size_t> Send(const std::string& transport,
                                             const std::string& congestion,
                                             bool isMarked)
    {
        WireHost host(Make<UbTransport>(transport),
                      congestion.empty() ? nullptr : Make<UbCongestionControl>(congestion));
        host.marks = [isMarked](const UbInjection&) { return isMarked; };
        host.AddFlow(200 * 4096);
        host.Run();
        NS_TEST_EXPECT_MSG_EQ(host.deliveredBytes, 200 * 4096, congestion << ": delivered");
        NS_TEST_EXPECT_MSG_EQ(host.held, 0, congestion << ": held");
        return {host.flows[0].finishPs, host.Count(true), host.Count(false)};
    }

    void DoRun() override
    {
        const std::string reliable =
            "ns3::UbReliable[AcknowledgeEvery=1|WindowBytes=10000000|Timeout=1ms]";
        const int64_t free = std::get<0>(Send(reliable, "", false));
        for (const std::string congestion :
             {"ns3::UbLdcp[InitialPackets=200]", "ns3::UbCaqm[InitialPackets=200]"})
        {
            NS_TEST_ASSERT_MSG_EQ(std::get<0>(Send(reliable, congestion, false)),
                                  free,
                                  congestion << " does not hold back a source without marks");
            const std::string small =
                congestion.substr(0, congestion.find('[')) + "[InitialPackets=20]";
            const auto [end, nData, nOther] = Send(reliable, small, true);
            NS_TEST_ASSERT_MSG_GT(end, 20 * free, small << " holds it back with marks");
            NS_TEST_ASSERT_MSG_EQ(nData, 200, "nothing is repeated");
            NS_TEST_ASSERT_MSG_EQ(nOther, 200, "an acknowledgement a packet");
        }
        int64_t endPs[2];
        for (const bool refuses : {false, true})
        {
            WireHost host(Make<UbTransport>(reliable), Make<UbCongestionControl>("ns3::UbCaqm"));
            host.refuses = refuses;
            host.AddFlow(200 * 4096);
            host.Run();
            endPs[refuses ? 1 : 0] = host.flows[0].finishPs;
        }
        // ten packets a round trip of 2.1 us and a packet's time of 41.5 ns, 20 times
        NS_TEST_ASSERT_MSG_GT(endPs[1], 19 * 2'100'000, "a window that may not grow stays small");
        NS_TEST_ASSERT_MSG_LT(endPs[0], endPs[1] / 2, "a window that may grow does");
        for (const std::string& transport : {reliable, std::string("ns3::UbCompact")})
        {
            const auto quiet = Send(transport, "ns3::UbDcqcn", false);
            const auto marked = Send(transport, "ns3::UbDcqcn[NoticeGap=2us]", true);
            NS_TEST_ASSERT_MSG_GT(std::get<0>(marked), 2 * std::get<0>(quiet), "notices slow it");
            NS_TEST_ASSERT_MSG_GT(std::get<2>(marked), std::get<2>(quiet), "there are notices");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Transports and congestion control.
 */
class UbTransportTestSuite : public TestSuite
{
  public:
    UbTransportTestSuite()
        : TestSuite("ub-transport", Type::UNIT)
    {
        AddTestCase(new UbLoadStoreLoneTestCase(false), TestCase::Duration::QUICK);
        AddTestCase(new UbLoadStoreLoneTestCase(true), TestCase::Duration::QUICK);
        AddTestCase(new UbLoadStoreWindowTestCase(1), TestCase::Duration::QUICK);
        AddTestCase(new UbLoadStoreWindowTestCase(5), TestCase::Duration::QUICK);
        AddTestCase(new UbReliableClockTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbReadPaceTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbAcknowledgeTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbCompactTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbReliableLossTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbReliableReorderTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbBackOffTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbLostResponseTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbPostedReadTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbExactlyOnceTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbTransportOrderTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbOverlapTestCase(false, 300'000), TestCase::Duration::QUICK);
        AddTestCase(new UbOverlapTestCase(true, 300'000), TestCase::Duration::QUICK);
        AddTestCase(new UbOverlapTestCase(true, 120'000), TestCase::Duration::QUICK);
        AddTestCase(new UbEngineBusyTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbSdmaTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbFramingTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbNoWayTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbCongestionTestCase(), TestCase::Duration::QUICK);
        AddTestCase(new UbCongestionLoopTestCase(), TestCase::Duration::QUICK);
    }
};

static UbTransportTestSuite g_ubTransportTestSuite; //!< registers the suite
