// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport-queued.h"

#include "ns3/boolean.h"
#include "ns3/uinteger.h"

#include <algorithm>

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbQueuedTransport);

TypeId
UbQueuedTransport::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbQueuedTransport")
            .SetParent<UbTransport>()
            .SetGroupName("UbFabric")
            .AddAttribute("Mtu",
                          "Most payload of a packet; PayloadBytes of the fabric if that is less "
                          "(ns-3-UB: 4096 B).",
                          UintegerValue(4096),
                          MakeUintegerAccessor(&UbQueuedTransport::m_mtu),
                          MakeUintegerChecker<uint32_t>(1, 60000))
            .AddAttribute("WorkRequestBytes",
                          "Most bytes that an engine posts at a time; a longer message is posted "
                          "in parts, each at the issue cost (ns-3-UB: 64 KiB).",
                          UintegerValue(65536),
                          MakeUintegerAccessor(&UbQueuedTransport::m_workBytes),
                          MakeUintegerChecker<uint32_t>(1))
            .AddAttribute("NoticeBytes",
                          "Size of a congestion notice: link 4 B, network 12 B, transport 16 B, "
                          "congestion extension 8 B (derived).",
                          UintegerValue(40),
                          MakeUintegerAccessor(&UbQueuedTransport::m_noticeBytes),
                          MakeUintegerChecker<uint32_t>(1, 5000))
            .AddAttribute("Ordered",
                          "Whether all packets from a source to a destination keep to one path. "
                          "If not, they are sprayed as the policies say.",
                          BooleanValue(false),
                          MakeBooleanAccessor(&UbQueuedTransport::m_isOrdered),
                          MakeBooleanChecker());
    return tid;
}

uint32_t
UbQueuedTransport::PacketBytes() const
{
    return std::min(m_mtu, m_payloadBytes);
}

uint32_t
UbQueuedTransport::PieceBytes() const
{
    return m_workBytes;
}

UbTransport::Style
UbQueuedTransport::GetStyle() const
{
    return DESCRIBE;
}

int64_t
UbQueuedTransport::HandOver(const UbPiece& piece, int64_t nowPs)
{
    const UbFlowRecord& flow = m_host->FlowRecord(piece.flow);
    const auto [found, isNew] = m_channelOf.try_emplace(Key(flow.src, flow.dst, flow.lane), 0);
    if (isNew)
    {
        if (m_freeChannels.empty())
        {
            found->second = static_cast<uint32_t>(m_channels.size());
            m_channels.emplace_back();
        }
        else
        {
            found->second = m_freeChannels.back();
            m_freeChannels.pop_back();
        }
        Channel& channel = m_channels[found->second];
        channel.src = flow.src;
        channel.dst = flow.dst;
        channel.lane = flow.lane;
        if (m_congestion)
        {
            m_congestion->Begin(channel.congestion,
                                PacketBytes(),
                                m_host->PortBytesPerS(flow.src, m_network),
                                nowPs);
        }
    }
    m_host->Hold(piece.flow);
    m_host->CountSent(piece.bytes);
    m_channels[found->second].work.Push({piece.flow, piece.bytes});
    Wake(found->second, nowPs);
    return nowPs;
}

uint32_t
UbQueuedTransport::FindChannel(uint32_t flow) const
{
    const UbFlowRecord& record = m_host->FlowRecord(flow);
    const auto found = m_channelOf.find(Key(record.src, record.dst, record.lane));
    return found == m_channelOf.end() ? UB_NONE : found->second;
}

void
UbQueuedTransport::Wake(uint32_t index, int64_t nowPs)
{
    Channel& channel = m_channels[index];
    if (channel.isQueued || channel.isPaced || NextBytes(channel) == 0)
    {
        return;
    }
    if (channel.nextSendPs > nowPs)
    {
        channel.isPaced = true;
        m_host->SetTimer(channel.nextSendPs, m_network, TimerName(PACE, channel), index);
        return;
    }
    channel.isQueued = true;
    if (channel.src >= m_controllers.size())
    {
        m_controllers.resize(channel.src + 1);
    }
    m_controllers[channel.src].ready.push_back(index);
    ScheduleNext(channel.src, nowPs);
}

void
UbQueuedTransport::ScheduleNext(uint32_t endpoint, int64_t nowPs)
{
    Controller& controller = m_controllers[endpoint];
    if (!controller.isScheduled && !controller.ready.empty())
    {
        controller.isScheduled = true;
        m_host->SchedulePump(std::max(nowPs, m_host->EgressFreePs(endpoint)), endpoint, m_network);
    }
}

void
UbQueuedTransport::Pump(uint32_t endpoint, int64_t nowPs)
{
    m_controllers[endpoint].isScheduled = false;
    while (!m_controllers[endpoint].ready.empty())
    {
        const uint32_t index = m_controllers[endpoint].ready.front();
        m_controllers[endpoint].ready.pop_front();
        m_channels[index].isQueued = false;
        if (NextBytes(m_channels[index]) > 0)
        {
            SendNext(index, nowPs);
            Wake(index, nowPs);
            break;
        }
        CloseIfIdle(index);
    }
    ScheduleNext(endpoint, nowPs);
}

void
UbQueuedTransport::Expire(uint64_t name, uint32_t index, int64_t nowPs)
{
    const auto kind = static_cast<TimerKind>(name >> 60);
    if (kind == PACE)
    {
        m_channels[index].isPaced = false;
        Wake(index, nowPs);
        CloseIfIdle(index);
        return;
    }
    ChannelTimer(kind, index, nowPs);
}

void
UbQueuedTransport::ChannelTimer(TimerKind /* kind */, uint32_t /* index */, int64_t /* nowPs */)
{
}

void
UbQueuedTransport::CloseIfIdle(uint32_t index)
{
    Channel& channel = m_channels[index];
    if (channel.work.IsEmpty() && channel.outstanding.IsEmpty() && channel.underWay == 0 &&
        !channel.isQueued && !channel.isPaced && channel.ackTimerPs == 0)
    {
        m_channelOf.erase(Key(channel.src, channel.dst, channel.lane));
        Channel fresh;
        fresh.work = std::move(channel.work);
        fresh.outstanding = std::move(channel.outstanding);
        fresh.arrived = std::move(channel.arrived); // all bits are clear
        channel = std::move(fresh);
        m_freeChannels.push_back(index);
    }
}

int64_t
UbQueuedTransport::SendOn(uint32_t index,
                          bool isForward,
                          uint32_t flow,
                          uint32_t tag,
                          uint32_t headerBytes,
                          uint32_t payloadBytes,
                          int64_t nowPs)
{
    Channel& channel = m_channels[index];
    UbInjection injection{};
    injection.flow = flow;
    injection.srcEndpoint = isForward ? channel.src : channel.dst;
    injection.dstEndpoint = isForward ? channel.dst : channel.src;
    injection.tag = tag;
    injection.payloadBytes = payloadBytes;
    injection.wireBytes = m_host->WireBytes(m_network, headerBytes, payloadBytes);
    injection.lane = channel.lane;
    injection.ordered = m_isOrdered;
    injection.congestion = payloadBytes > 0 ? UB_PACKET_WRITES : 0;
    if (m_congestion && payloadBytes > 0)
    {
        injection.congestion |= UB_CONGESTION_CAPABLE;
        channel.nextSendPs = nowPs + m_congestion->OnSend(channel.congestion,
                                                          payloadBytes,
                                                          nowPs,
                                                          injection.congestion,
                                                          injection.hint);
    }
    ++channel.underWay;
    m_host->Hold(flow);
    return m_host->Send(injection, m_network, nowPs);
}

void
UbQueuedTransport::NoticeIfMarked(uint32_t index, const UbDelivery& delivery, int64_t nowPs)
{
    const int64_t gapPs = m_congestion ? m_congestion->NoticeGapPs() : 0;
    Channel& channel = m_channels[index];
    if (gapPs == 0 || (delivery.congestion & UB_CONGESTION_MARKED) == 0 ||
        (channel.noticePs >= 0 && nowPs < channel.noticePs + gapPs))
    {
        return;
    }
    channel.noticePs = nowPs;
    SendOn(index, false, delivery.flow, NOTICE << TYPE_SHIFT, m_noticeBytes, 0, nowPs);
}

} // namespace ns3
