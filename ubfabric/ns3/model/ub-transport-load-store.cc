// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport.h"

#include "ns3/abort.h"
#include "ns3/uinteger.h"

#include <algorithm>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Memory semantics: cores write and read remote memory, each request is answered.
 *
 * A message is cut into requests. A write's request carries the data and is answered one
 * acknowledge latency after its last byte is in; a read's request carries nothing and is answered
 * with the data one memory read latency after it is in. Each core may have so many requests
 * unanswered and stalls when it has one more. An answer to a write frees its place one
 * acknowledge latency after it is in, data read one receive latency after it is in, when the core
 * sees it. A message is out when all its requests are answered: tasks that send wait for that,
 * as a fence would.
 *
 * A request that is lost, or whose answer is lost, is sent again one timeout after the loss. If
 * only the answer to a write was lost, the data is there already; writing it again changes
 * nothing, and it is not counted again.
 */
class UbLoadStore : public UbTransport
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbLoadStore")
                .SetParent<UbTransport>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbLoadStore>()
                .AddAttribute("HeaderBytes",
                              "Headers of a write request: link 4 B, network 8 B, transaction "
                              "4 B, memory address 12 B, all compact (ns-3-UB).",
                              UintegerValue(28),
                              MakeUintegerAccessor(&UbLoadStore::m_headerBytes),
                              MakeUintegerChecker<uint32_t>(0, 5000))
                .AddAttribute("ReadRequestBytes",
                              "Size of a read request; the same headers and nothing else.",
                              UintegerValue(28),
                              MakeUintegerAccessor(&UbLoadStore::m_readRequestBytes),
                              MakeUintegerChecker<uint32_t>(1, 5000))
                .AddAttribute("ResponseHeaderBytes",
                              "Headers of a response: link 4 B, network 8 B, transaction 4 B, "
                              "acknowledgement 4 B, all compact (derived).",
                              UintegerValue(20),
                              MakeUintegerAccessor(&UbLoadStore::m_responseBytes),
                              MakeUintegerChecker<uint32_t>(1, 5000))
                .AddAttribute("RequestBytes",
                              "Most bytes that a request writes or reads (ns-3-UB: 512 B).",
                              UintegerValue(512),
                              MakeUintegerAccessor(&UbLoadStore::m_requestBytes),
                              MakeUintegerChecker<uint32_t>(1, 60000))
                .AddAttribute("WindowRequests",
                              "Requests of a core that may be unanswered (ns-3-UB: 64).",
                              UintegerValue(64),
                              MakeUintegerAccessor(&UbLoadStore::m_window),
                              MakeUintegerChecker<uint32_t>(1))
                .AddAttribute("Timeout",
                              "Time from the loss of a request or answer until the request is "
                              "sent again, and between two tries to find a way (assumed: nothing "
                              "is published).",
                              TimeValue(MicroSeconds(128)),
                              MakeTimeAccessor(&UbLoadStore::m_timeout),
                              MakeTimeChecker(PicoSeconds(1)));
        return tid;
    }

    uint32_t PacketBytes() const override
    {
        return std::min(m_requestBytes, m_payloadBytes);
    }

    bool CanRead() const override
    {
        return true;
    }

    bool Answers() const override
    {
        return true;
    }

    uint32_t MaxHeaderBytes() const override
    {
        return std::max({m_headerBytes, m_responseBytes, m_readRequestBytes});
    }

    int64_t HandOver(const UbPiece& piece, int64_t nowPs) override
    {
        Core& core = CoreOf(piece.endpoint, piece.engine);
        if (core.unanswered >= m_window)
        {
            core.isStalled = true;
            return UB_NEVER;
        }
        ++core.unanswered;
        m_host->Hold(piece.flow);
        m_host->CountSent(piece.bytes);
        Tag tag;
        tag.engine = piece.engine;
        tag.bytes = piece.bytes;
        return Request(piece.flow, tag, nowPs);
    }

    void Account(const UbDelivery& delivery) override
    {
        const Tag tag(delivery.tag);
        const UbFlowRecord& flow = m_host->FlowRecord(delivery.flow);
        const bool isRead = (flow.operation & UB_READ) != 0;
        UbReaction reaction;
        reaction.delivery = delivery;
        if (delivery.isLost)
        {
            reaction.kind = REPEAT;
            m_host->Schedule(delivery.tailPs + GetTimeoutPs(), flow.src, reaction);
            return;
        }
        // what counts towards the flow does not depend on order, so it need not wait
        if (isRead == tag.isAnswer && !tag.isKnown)
        {
            m_host->Deliver(delivery);
        }
        if (tag.isAnswer)
        {
            reaction.kind = FREE;
            m_host->Schedule(delivery.tailPs + (isRead ? m_host->ReceivePs(flow.src)
                                                       : m_host->AcknowledgePs(flow.src)),
                             flow.src,
                             reaction);
            return;
        }
        reaction.kind = ANSWER;
        m_host->Schedule(delivery.tailPs + (isRead ? m_host->MemoryReadPs(flow.dst)
                                                   : m_host->AcknowledgePs(flow.dst)),
                         flow.dst,
                         reaction);
    }

    void React(uint32_t endpoint, const UbReaction& reaction, int64_t nowPs) override
    {
        const uint32_t reference = reaction.delivery.flow;
        const UbFlowRecord& flow = m_host->FlowRecord(reference);
        Tag tag(reaction.delivery.tag);
        switch (reaction.kind)
        {
        case ANSWER: {
            tag.isAnswer = true;
            const uint32_t payload = (flow.operation & UB_READ) != 0 ? tag.bytes : 0;
            UbInjection injection{};
            injection.flow = reference;
            injection.srcEndpoint = flow.dst;
            injection.dstEndpoint = flow.src;
            injection.tag = tag.Pack();
            injection.payloadBytes = payload;
            injection.wireBytes = m_host->WireBytes(m_network, m_responseBytes, payload);
            injection.lane = flow.lane;
            m_host->Send(injection, m_network, nowPs);
            return;
        }
        case FREE: {
            Core& core = CoreOf(endpoint, tag.engine);
            --core.unanswered;
            if (core.isStalled)
            {
                core.isStalled = false;
                m_host->Resume(endpoint, tag.engine, nowPs);
            }
            m_host->Complete(reference, nowPs);
            m_host->Release(reference);
            return;
        }
        default:
            if (tag.attempts >= GetRetryLimit())
            {
                m_host->Fail(reference, nowPs);
                return;
            }
            ++tag.attempts;
            tag.isKnown |= tag.isAnswer && (flow.operation & UB_READ) == 0;
            tag.isAnswer = false;
            Request(reference, tag, nowPs);
        }
    }

  private:
    /// What a reaction is about.
    enum Kind : uint32_t
    {
        ANSWER = 0, //!< a request is answered
        FREE = 1,   //!< an answer frees a place in the window
        REPEAT = 2, //!< a request is sent again
    };

    /// What a packet carries besides its payload.
    struct Tag
    {
        bool isAnswer{false}; //!< a response, not a request
        bool isKnown{false};  //!< the data was written before
        uint32_t engine{0};   //!< the core
        uint32_t attempts{0}; //!< how often the request was sent before
        uint32_t bytes{0};    //!< bytes written or read

        Tag() = default;

        /// @param [in] packed As it travels.
        explicit Tag(uint32_t packed)
            : isAnswer((packed & 1) != 0),
              isKnown((packed & 2) != 0),
              engine((packed >> 2) & 63),
              attempts((packed >> 8) & 31),
              bytes(packed >> 13)
        {
        }

        /// @return As it travels.
        uint32_t Pack() const
        {
            return (isAnswer ? 1U : 0U) | (isKnown ? 2U : 0U) | (engine << 2) | (attempts << 8) |
                   (bytes << 13);
        }
    };

    /// An issue engine.
    struct Core
    {
        uint32_t unanswered{0}; //!< requests without an answer
        bool isStalled{false};  //!< has a request that does not fit the window
    };

    /**
     * @param [in] endpoint An endpoint.
     * @param [in] engine Number of an engine within it.
     * @return The engine.
     */
    Core& CoreOf(uint32_t endpoint, uint32_t engine)
    {
        constexpr size_t maxEngines = 64;
        const size_t index = endpoint * maxEngines + engine;
        if (index >= m_cores.size())
        {
            m_cores.resize((endpoint + 1) * maxEngines);
        }
        return m_cores[index];
    }

    /**
     * Send a request.
     * @param [in] reference The flow.
     * @param [in] tag What it carries.
     * @param [in] nowPs The time.
     * @return When the egress takes it.
     */
    int64_t Request(uint32_t reference, const Tag& tag, int64_t nowPs)
    {
        const UbFlowRecord& flow = m_host->FlowRecord(reference);
        const bool isRead = (flow.operation & UB_READ) != 0;
        UbInjection injection{};
        injection.flow = reference;
        injection.srcEndpoint = flow.src;
        injection.dstEndpoint = flow.dst;
        injection.tag = tag.Pack();
        injection.payloadBytes = isRead ? 0 : tag.bytes;
        injection.congestion = isRead ? 0 : UB_PACKET_WRITES;
        injection.wireBytes = m_host->WireBytes(m_network,
                                                isRead ? m_readRequestBytes : m_headerBytes,
                                                injection.payloadBytes);
        injection.lane = flow.lane;
        return m_host->Send(injection, m_network, nowPs);
    }

    uint32_t m_readRequestBytes{0}; //!< attribute
    uint32_t m_responseBytes{0};    //!< attribute
    uint32_t m_requestBytes{0};     //!< attribute
    uint32_t m_window{0};           //!< attribute
    std::vector<Core> m_cores;      //!< by endpoint and engine
};

NS_OBJECT_ENSURE_REGISTERED(UbLoadStore);

} // namespace ns3
