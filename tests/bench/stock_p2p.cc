// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

/*
 * The same packets over stock ns-3: PointToPointNetDevice, PointToPointChannel, DropTailQueue.
 *
 * Everything that a user could leave out is left out, so that what remains is the price of ns-3's
 * own packets, devices and events: no IP stack, no traffic control, no trace sinks; switches
 * forward in the devices' receive callback by a table lookup and a round robin. Stock links know
 * neither cut-through nor credits: packets are stored and forwarded, queues are as long as they
 * need to be, and the switch's forwarding latency is part of the channel's delay.
 */

#include "moves.h"

#include "ns3/core-module.h"
#include "ns3/data-rate.h"
#include "ns3/drop-tail-queue.h"
#include "ns3/header.h"
#include "ns3/node.h"
#include "ns3/packet.h"
#include "ns3/point-to-point-channel.h"
#include "ns3/point-to-point-net-device.h"

using namespace ns3;

namespace
{

constexpr uint32_t PPP_BYTES = 2;     //!< what the device itself adds
constexpr uint16_t PROTOCOL = 0x0800; //!< one of the two that PPP carries

/// Destination of a packet, filled up to the size of the fabric's header.
class FabricHeader : public Header
{
  public:
    uint32_t destination{0}; //!< number of the destination
    uint32_t bytes{62};      //!< size on the wire

    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("FabricHeader").SetParent<Header>().AddConstructor<FabricHeader>();
        return tid;
    }

    TypeId GetInstanceTypeId() const override
    {
        return GetTypeId();
    }

    uint32_t GetSerializedSize() const override
    {
        return bytes;
    }

    void Serialize(Buffer::Iterator start) const override
    {
        start.WriteU32(destination);
        start.WriteU32(bytes);
        start.WriteU8(0, bytes - 8);
    }

    uint32_t Deserialize(Buffer::Iterator start) override
    {
        destination = start.ReadU32();
        bytes = start.ReadU32();
        return bytes;
    }

    void Print(std::ostream& os) const override
    {
        os << "to " << destination;
    }
};

/// The fabric out of stock parts.
class StockFabric
{
  public:
    explicit StockFabric(const Moves& moves)
        : m_moves(moves),
          m_device(moves.linkSrc.size()),
          m_turn(moves.groupStart.size() - 1, 0),
          m_next(moves.sourceStart.begin(), moves.sourceStart.end() - 1)
    {
        std::vector<Ptr<Node>> nodes(moves.isEndpoint.size());
        for (auto& node : nodes)
        {
            node = CreateObject<Node>();
        }
        for (size_t link = 0; link < moves.linkSrc.size(); link += 2)
        {
            if (moves.linkUsed[link] == 0)
            {
                continue;
            }
            // a delay belongs to a channel, so both directions get the forwarding latency of the
            // switch at one end: the cables of endpoints that of their switch, others either's
            const int64_t forward = std::max(moves.forwardPs[moves.linkSrc[link]],
                                             moves.forwardPs[moves.linkDst[link]]);
            auto channel = CreateObject<PointToPointChannel>();
            channel->SetAttribute("Delay",
                                  TimeValue(PicoSeconds(moves.linkDelayPs[link] + forward)));
            for (size_t side = 0; side < 2; ++side)
            {
                auto device = CreateObject<PointToPointNetDevice>();
                device->SetAddress(Mac48Address::Allocate());
                device->SetMtu(65535);
                device->SetDataRate(DataRate(8 * moves.linkRate[link + side]));
                auto queue = CreateObject<DropTailQueue<Packet>>();
                queue->SetMaxSize(QueueSize("1000000000p"));
                device->SetQueue(queue);
                const int64_t node = moves.linkSrc[link + side];
                nodes[node]->AddDevice(device);
                device->SetReceiveCallback(
                    moves.isEndpoint[node] != 0
                        ? MakeCallback(&StockFabric::Arrive, this)
                        : MakeCallback(&StockFabric::Forward, this).Bind(node));
                device->Attach(channel);
                m_device[link + side] = device;
            }
        }
        m_nodes = nodes;
        for (size_t source = 0; source < moves.source.size(); ++source)
        {
            Simulator::Schedule(PicoSeconds(moves.sourceGapPs[source]),
                                &StockFabric::Emit,
                                this,
                                source);
        }
    }

    Report report; //!< what happened

  private:
    /// Send a source's next packet.
    void Emit(size_t source)
    {
        const int64_t packet = m_next[source]++;
        FabricHeader header;
        header.destination = static_cast<uint32_t>(m_moves.packetDst[packet]);
        header.bytes = static_cast<uint32_t>(m_moves.headerBytes) - PPP_BYTES;
        auto p = Create<Packet>(static_cast<uint32_t>(m_moves.packetBytes[packet]));
        p->AddHeader(header);
        const auto& device = m_device[m_moves.packetLink[packet]];
        device->Send(p, device->GetBroadcast(), PROTOCOL);
        if (m_next[source] < m_moves.sourceStart[source + 1])
        {
            Simulator::Schedule(PicoSeconds(m_moves.sourceGapPs[source]),
                                &StockFabric::Emit,
                                this,
                                source);
        }
    }

    /// Pass a packet on at a switch.
    bool Forward(int64_t node,
                 Ptr<NetDevice> /* device */,
                 Ptr<const Packet> packet,
                 uint16_t protocol,
                 const Address& /* from */)
    {
        ++report.packetHops;
        FabricHeader header;
        packet->PeekHeader(header);
        const int64_t group = m_moves.Group(node, header.destination);
        const int64_t begin = m_moves.groupStart[group];
        const int64_t nLinks = m_moves.groupStart[group + 1] - begin;
        int64_t& turn = m_turn[group];
        turn = turn + 1 < nLinks ? turn + 1 : 0;
        const auto& device = m_device[m_moves.groupLink[begin + turn]];
        return device->Send(packet->Copy(), device->GetBroadcast(), protocol);
    }

    /// Take a packet in at its destination.
    bool Arrive(Ptr<NetDevice> /* device */,
                Ptr<const Packet> packet,
                uint16_t /* protocol */,
                const Address& /* from */)
    {
        ++report.packetHops;
        ++report.packets;
        report.bytes += packet->GetSize() - (m_moves.headerBytes - PPP_BYTES);
        report.simulatedPs = Simulator::Now().GetPicoSeconds();
        return true;
    }

    const Moves& m_moves;                             //!< what to move
    std::vector<Ptr<PointToPointNetDevice>> m_device; //!< device at the start of each link
    std::vector<Ptr<Node>> m_nodes;                   //!< keeps the nodes
    std::vector<int64_t> m_turn;                      //!< by group: last choice
    std::vector<int64_t> m_next;                      //!< by source: next packet
};

} // namespace

int
main(int argc, char* argv[])
{
    if (argc != 2)
    {
        std::fputs("usage: stock_p2p MOVES\n", stderr);
        return 2;
    }
    Time::SetResolution(Time::PS);
    const Moves moves(argv[1]);
    StockFabric fabric(moves);
    const double start = CpuSeconds();
    Simulator::Run();
    fabric.report.cpuS = CpuSeconds() - start;
    fabric.report.events = Simulator::GetEventCount();
    fabric.report.Print();
    Simulator::Destroy();
    return 0;
}
